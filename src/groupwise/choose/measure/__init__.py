"""What each groups value takes and loses, measured, and the choices that follow."""
