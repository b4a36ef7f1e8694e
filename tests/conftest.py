"""Shared fixtures and the order of the tests."""

import signal

import pytest

# In the background of a script, or under nohup, signals are ignored, and would be in every command that the tests start.
for _number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL)


@pytest.fixture(autouse=True, scope="session")
def cache_folder(tmp_path_factory):
    """Cache listings and label lists in a folder of the tests, not in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SFRIK_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


# longest first: where files are distributed over processes (`make test`), none of them is left to run at the end
LONGEST = ["test_make_tables.py", "test_storage_faults.py", "test_launch_notebook.py", "test_paper_end_to_end.py"]
LONGEST += ["test_resume.py", "test_two_tables.py", "test_launch.py", "test_notebooks.py", "test_launch_faults.py"]


def pytest_collection_modifyitems(items):
    """Sort the longest files to the front."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONGEST)))
