"""The way out for tools in workers: their requests, with a credential that they never see."""
