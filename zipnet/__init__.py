"""zipnet: anonymous broadcast by a committee of attested appliances.

The names below are those of `zipnet.sdk`, which is imported when one of them is first used.
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["Access", "Message", "Network", "Outcome", "Receipt", "Zipnet", "__version__"]

if TYPE_CHECKING:
    from zipnet.sdk import Access, Message, Network, Outcome, Receipt, Zipnet
else:

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from zipnet import sdk  # noqa: PLC0415

        return getattr(sdk, name)
