"""A command of nothing: what the parser of arguments loads by itself."""

import tyro


def main(n: int = 0) -> None:
    """Take a number."""


if __name__ == "__main__":
    tyro.cli(main, prog="bare")
