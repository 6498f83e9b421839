"""What requests took and cost, and what they may cost: the ledger, its readers, prices and the budget."""
