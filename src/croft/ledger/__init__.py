"""What is lent and used: offers, and later leases, receipts and what follows from them."""
