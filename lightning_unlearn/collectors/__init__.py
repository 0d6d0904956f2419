"""How experience is gathered: the collector that feeds a method, and whole episodes of a policy."""
