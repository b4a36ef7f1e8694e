"""What every test shares."""

import pytest


@pytest.fixture(autouse=True, scope="session")
def cache_of_their_own(tmp_path_factory):
    """Listings and label lists are cached in a folder of the tests, not in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SFRIK_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def pytest_collection_modifyitems(items):
    """The longest file first: where the files are shared out among processes, none waits for it at the end."""
    items.sort(key=lambda item: item.path.name != "test_make_tables.py")
