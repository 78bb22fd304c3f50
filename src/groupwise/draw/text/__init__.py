"""The same facts as plain text, one file for each kind."""
