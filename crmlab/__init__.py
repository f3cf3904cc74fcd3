"""crmlab: whom to address, when, with which offer, by which channel, and whether it paid."""
