"""zipnet: anonymous broadcast by a committee of attested appliances."""

__version__ = "0.1.0"
