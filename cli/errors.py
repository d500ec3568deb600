"""What may go wrong, from one job to everything."""


class JobFailed(Exception):
    """One job cannot be done; others can."""


class BadTable(Exception):
    """Nothing of a table can be run."""


class NotWritable(Exception):
    """Nothing can be kept where it is to be kept."""


class ServerGone(Exception):
    """No ComfyUI answers."""


class ServerEnded(Exception):
    """The ComfyUI that this program started ended in the middle; it can be started again."""
