"""``python -m percmae`` is the ``percmae`` command (torchrun starts it so)."""

from percmae.cli.verbs import entry

if __name__ == "__main__":
    entry()
