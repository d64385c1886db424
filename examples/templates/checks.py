"""Does the spectrum belong to the swing? The job file names ``validate``."""

LINES = 129


def validate(parameters, result):
    """Parseval's theorem: the powers add up to the mean square, which is the other result."""
    try:
        mean_square = float(result["output"].text())
        powers = [float(line.split()[1]) for line in result["spectrum"].text().splitlines()]
    except (ValueError, IndexError):
        return False
    return len(powers) == LINES and abs(sum(powers) - mean_square) <= 1e-6 * mean_square
