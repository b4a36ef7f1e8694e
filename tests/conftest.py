"""What every test shares."""

import pytest


@pytest.fixture(autouse=True, scope="session")
def cache_of_their_own(tmp_path_factory):
    """Listings and label lists are cached in a folder of the tests, not in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SFRIK_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


LONGEST = "test_make_tables.py"
ALONE = {"test_evaluation_resume.py", "test_faults.py", "test_launch.py", "test_launch_faults.py", "test_launch_notebook.py"}
ALONE |= {"test_resume.py"}  # they bound the seconds in which several processes start and end


def pytest_collection_modifyitems(items):
    """The longest file first: where files are shared out among processes (`make test`), none waits for it at the end."""
    items.sort(key=lambda item: item.path.name != LONGEST)
    for item in items:
        if item.path.name in ALONE:
            item.add_marker(pytest.mark.alone)
