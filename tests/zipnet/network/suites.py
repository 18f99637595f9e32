"""All cases that an engine must pass."""

from tests.zipnet.network.cases_channel import BLOBS, CHANNEL, DENIED
from tests.zipnet.network.cases_group import GROUP
from tests.zipnet.network.cases_log import LOG
from tests.zipnet.network.cases_table import TABLE

SUITES = (LOG, GROUP, TABLE, CHANNEL, BLOBS, DENIED)
CASES = [case for suite in SUITES for case in suite.cases]
