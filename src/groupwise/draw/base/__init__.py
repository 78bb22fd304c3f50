"""The base of every picture and text: the card, the font, numbers and phrases."""
