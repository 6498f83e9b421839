"""Who answers a prompt, and why: what is looked at, the rules over it, and what people say of the outcome."""
