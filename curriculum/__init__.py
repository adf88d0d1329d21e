"""Skills to learn: generators write files for the inbox, before the first arrow of `inbox -> intake -> ...`."""
