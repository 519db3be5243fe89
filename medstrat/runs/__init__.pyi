from .records import Run as Run
from .records import finish as finish
from .records import start_run as start_run
from .requests import Request as Request
from .tables import compare as compare
from .tables import read_label_efficiency as read_label_efficiency
from .tables import read_runs as read_runs
from .tables import tidy as tidy

__all__: list[str]
