"""What a conversion can fail with."""


class ConversionError(ValueError):
    """Something in the source or the request that can't be converted.

    `problems` are complete sentences, each naming the file or tensor and, where there is one, the
    mend; the text of the error is all of them, one a line.
    """

    def __init__(self, *problems: str):
        super().__init__("\n".join(problems))
        self.problems = problems


class VerificationError(Exception):
    """The converted model does not agree with its reference; the text says at which stage."""
