"""The methods: LightningModules."""
