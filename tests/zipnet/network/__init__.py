import pytest

pytest.register_assert_rewrite(
    *(
        f"{__name__}.{module}"
        for module in ("cases_log", "cases_group", "cases_table", "cases_channel")
    )
)
