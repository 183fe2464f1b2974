"""How one token, one number and one table look: in a terminal, in HTML, in colour."""
