"""The methods: a LightningModule each."""
