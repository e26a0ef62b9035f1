"""Documents, and the code that writes their generated parts."""
