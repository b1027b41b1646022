"""What other programs start a fleet by, made from its file. Texts only; the same text every time."""
