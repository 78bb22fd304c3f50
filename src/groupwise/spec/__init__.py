"""The convolution as numbers; torch is never imported here."""
