"""Usage events of a SaaS application, turned into numbers one can bill on."""
