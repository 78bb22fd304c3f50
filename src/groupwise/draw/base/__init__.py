"""What every picture is made of: a card, a font, numbers and phrases."""
