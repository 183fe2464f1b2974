"""How tokens, numbers and tables look in a terminal and in HTML, and the colours of all pages and plots."""
