"""People's grades of a run's pairs, as TREC qrels in the store."""

from pyrite.errors import PyriteError, UserError
from pyrite.people.sampling import Key
from pyrite.store import Store, VersionedObject

#: Maximum attempts to write the file while other processes write it.
_ATTEMPTS = 10


class GradeFile:
    """The file of grades: one line ``query-id 0 passage-id relevance`` per pair.

    Relevance is grade - 1, so 0 to 3: tools for qrels count everything above 0 as relevant, and grade 1 is not.
    """

    def __init__(self, store: Store, key: str):
        self._store, self._key = store, key

    def __str__(self) -> str:
        return f"{self._store}/{self._key}"

    def read(self) -> dict[Key, int]:
        """The grades, 1 to 4, by pair, in the order of grading. Raises UserError if the file is damaged."""
        return self._parse(self._store.read_versioned(self._key))

    def add(self, pair: Key, grade: int) -> None:
        """Store a grade; it replaces an earlier one of the same pair. Grades by other processes are not lost.

        Raises:
            UserError: the file is damaged.
            PyriteError: other processes keep writing.
        """
        current = self._store.read_versioned(self._key)
        for _ in range(_ATTEMPTS):
            grades = self._parse(current)
            grades[pair] = grade
            lines = (f"{query} 0 {passage} {each - 1}\n" for (query, passage), each in grades.items())
            data = "".join(lines).encode()
            current = self._store.conditional_put(self._key, data, current)
            if current and current.data == data:
                return
        raise PyriteError(f"cannot write {self}: other processes keep writing it. Let one person grade at a time.")

    def _parse(self, found: VersionedObject | None) -> dict[Key, int]:
        grades = {}
        for number, line in enumerate(found.data.decode(errors="replace").splitlines() if found else (), 1):
            fields = line.split()
            if len(fields) != 4 or fields[3] not in ("0", "1", "2", "3"):
                raise UserError(
                    f"{self}:{number}: {line[:80]!r} is not 'query-id 0 passage-id relevance' with a relevance from 0 "
                    "to 3. Fix or remove the line."
                )
            grades[fields[0], fields[2]] = int(fields[3]) + 1
        return grades
