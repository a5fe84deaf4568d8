"""The data of a recipe, opened: its files, some of their rows, and what the model's processor makes of them."""
