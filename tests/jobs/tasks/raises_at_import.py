"""Cannot be imported."""

import smlt

raise RuntimeError("this file was not meant for you")


class Task(smlt.Task):
    pass
