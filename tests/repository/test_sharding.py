"""State's schema can be distributed: keys, constraints and the document that says how agree with the tables."""

from __future__ import annotations

import re

import pytest
import sqlalchemy as sa

from services.state.tables import metadata
from tests.repository.tree import ROOT

# Tables of the whole installation, which are small and have no owner among runs and workspaces.
OF_THE_INSTALLATION = {
    "executors": "an executor drives runs of all workspaces",
    "feed": "one row that names the order of the journal",
}
TABLES = sorted(metadata.tables)
DOCUMENT = (ROOT / "docs" / "sharding.md").read_text()


@pytest.mark.parametrize("name", TABLES)
def test_primary_keys_start_with_the_workspace_or_the_run(name: str) -> None:
    first = next(iter(metadata.tables[name].primary_key.columns)).name
    if name in OF_THE_INSTALLATION:
        assert first not in ("workspace_id", "run_id"), "it needs no exception"
    else:
        assert first in ("workspace_id", "run_id")


@pytest.mark.parametrize("name", TABLES)
def test_rows_depend_on_no_other_shard(name: str) -> None:
    table = metadata.tables[name]
    assert not table.foreign_keys
    assert not [index.name for index in table.indexes if index.unique]
    assert not [constraint for constraint in table.constraints if isinstance(constraint, sa.UniqueConstraint)]
    for column in table.columns:
        assert column.identity is None
        assert not isinstance(column.default, sa.Sequence)
    # A single integer as a key would become a sequence by itself.
    assert table.autoincrement_column is None


@pytest.mark.parametrize("name", TABLES)
def test_the_document_distributes_every_table_by_a_column_of_its_key(name: str) -> None:
    call = re.search(rf"create_(distributed|reference)_table\('{name}'(?:, '(\w+)')?", DOCUMENT)
    assert call is not None, "docs/sharding.md does not say how it is distributed"
    if call[1] == "distributed":
        assert call[2] == next(iter(metadata.tables[name].primary_key.columns)).name


def test_the_document_names_no_table_that_is_gone() -> None:
    assert set(re.findall(r"create_\w+_table\('(\w+)'", DOCUMENT)) == set(TABLES)
