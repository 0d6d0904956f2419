"""What the sections are written from, and how they write numbers."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from lightning_unlearn.audits.audited_models import UNSAFE
from lightning_unlearn.report.charts import colours
from lightning_unlearn.report.document import Missing
from lightning_unlearn.report.findings import Findings
from lightning_unlearn.report.kinds import Kind
from lightning_unlearn.tracking import registry

NOTHING = "\N{EN DASH}"
_MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Material:
    """Everything that is known."""

    findings: Findings
    kinds: list[Kind]
    """Of the evaluation; empty without one."""
    maps: Mapping[str, bytes] = field(default_factory=dict)
    """Kind → heat map."""
    store_option: str = ""
    """Names the store in a command, with a space before it; empty where a command finds it by itself."""

    @property
    def env(self) -> str:
        """The environment."""
        return self.findings.env

    @property
    def colours(self) -> dict[str, str]:
        """Family → colour."""
        found = self.findings
        audited = [test.model.family for test in found.relearning]
        return colours([*(k.model.family for k in self.kinds), *(t.method for t in found.trainings), *audited])

    @property
    def expert_uri(self) -> str:
        """A model that commands can name as the unsafe expert."""
        paths = [str(kind.rows["Path"].iloc[0]) for kind in self.kinds if kind.model.family == UNSAFE]
        return paths[0] if paths else f"zoo:{registry.model_name(UNSAFE, self.env)}"

    @property
    def example_uri(self) -> str:
        """A model that commands can name as the repaired one."""
        paths = [str(kind.rows["Path"].iloc[0]) for kind in self.kinds if kind.model.family != UNSAFE]
        return paths[-1] if paths else f"models:/{registry.model_name('concept', self.env)}/latest"

    def missing(self, what: str, command: str) -> Missing:
        """What is not there, and how to make it in this store."""
        return Missing(what, f"lightning-unlearn {command}{self.store_option}")


def number(value: float | None, digits: int = 2) -> str:
    """With a true minus sign; a dash for what is not known."""
    if value is None or value != value:
        return NOTHING
    return f"{value:.{digits}f}".replace("-", _MINUS)


def percent(share: float | None) -> str:
    """A share as a whole percentage."""
    return NOTHING if share is None else f"{100 * share:.0f} %"


def with_spread(kind: Kind, column: str, std: str, quantity: str) -> str:
    """A mean with its interval over seeds; with one seed, the standard deviation over its episodes."""
    interval, middle = kind.interval(quantity), number(kind.mean(column), 1)
    if interval is None:
        return f"{middle} ± {number(kind.mean(std), 1)}"
    return f"{middle} [{number(interval[0], 1)}, {number(interval[1], 1)}]"
