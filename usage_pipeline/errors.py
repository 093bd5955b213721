"""The one exception a user is meant to read. Nothing else belongs here."""


class UsagePipelineError(Exception):
    """A failure with its remedy; printed as one line, without a traceback.

    Args:
        problem: what went wrong, with names and values but never a secret.
        remedy: what the reader does next, as an imperative.
    """

    def __init__(self, problem: str, remedy: str) -> None:
        self.problem = " ".join(problem.split()).rstrip(".")
        self.remedy = " ".join(remedy.split()).rstrip(".")
        super().__init__(f"{self.problem}. {self.remedy}.")
