"""The save() guard and the `version` column, shared by the three state machines.

A guarded model never moves along an edge that its table does not have, whichever way the new state
was given: a transition method, `transition_to`, plain assignment and save(), `QuerySet.update`,
`bulk_update`. The triggers of `db_guard` say the same once more for everybody else.
"""

from __future__ import annotations

import copy
import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime, timedelta
from functools import wraps
from typing import Any, ClassVar

from django.apps import apps
from django.db import connections, models, router, transaction
from django.db.models.functions import JSONObject
from django.utils import timezone
from django_fsm import TransitionNotAllowed, transition

from container_manager import ids
from container_manager.db_guard import Counted, GuardedTable
from container_manager.exceptions import HeldByWorker, InvalidTransition, StaleState
from container_manager.models import move_lines
from container_manager.models.expressions import MillisecondsBetween
from container_manager.models.move_lines import MoveLine
from container_manager.states import StateMachine

BATCH = 5_000
"""Rows at most in one statement that names them by id."""

PLUS_ONE = object()
"""A stamp that counts: the column's value plus one."""

_actor: ContextVar[str] = ContextVar("container_manager_actor", default="system")


@contextmanager
def acting_as(actor: str) -> Iterator[None]:
    """Moves made inside are told in the history as made by `actor`."""
    token = _actor.set(actor)
    try:
        yield
    finally:
        _actor.reset(token)


def current_actor() -> str:
    """Whom the history will name for a move made now."""
    return _actor.get()


def database_now(using: str) -> datetime:
    """The database's clock: life timestamps come from it, not from many machines."""
    connection = connections[using]
    if connection.vendor != "postgresql":
        return timezone.now()
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        return cursor.fetchone()[0]  # type: ignore[no-any-return]


def moves(
    machine: StateMachine, field: str, target: str, but: Collection[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A django-fsm transition to `target` from every source the table has, save those in `but`.

    Like any django-fsm transition it changes the instance and leaves saving to the caller; it
    raises our InvalidTransition, and refuses a second move before the first was saved.
    """
    fsm = transition(field=field, source=machine.sources_of(target, but), target=target)

    def decorate(method: Callable[..., Any]) -> Callable[..., Any]:
        change = fsm(method)

        @wraps(change)
        def move(self: GuardedModel, *args: Any, **kwargs: Any) -> Any:
            old = self._begin_move(target)
            with restored_on_error([self]):
                try:
                    result = change(self, *args, **kwargs)
                except TransitionNotAllowed as refused:
                    raise self._invalid(old, target) from refused
                self._stamp_move(old, target)
            return result

        return move

    return decorate


class GuardedQuerySet(models.QuerySet[Any]):
    """A QuerySet whose update() and bulk_update() obey the table of states."""

    def update(self, **values: Any) -> int:
        """Like Django's, all or nothing; with a new state also version, timestamps and history.

        Rows that are in that state already do not move and keep their version.
        Raises InvalidTransition, HeldByWorker.
        """
        state = self.model.state_field
        values.setdefault("updated_at", timezone.now())
        if state not in values:
            return super().update(**values)
        new = values[state]
        if not isinstance(new, str):
            raise TypeError(f"update({state}=…) takes a state, not an expression")
        self._for_write = True
        with transaction.atomic(using=self.db):
            rows = self._states_under_lock()
            self._refuse_unsound(rows, new)
            return self._move_all(rows, new, values)

    def _states_under_lock(self) -> dict[Any, str]:
        """Each row's state; joined tables stay unlocked, PostgreSQL could not lock a null side."""
        state = self.model.state_field
        rows = self.order_by("pk").select_for_update(of=("self",)).only("pk", state)
        return {row.pk: getattr(row, state) for row in rows}

    def _refuse_unsound(self, rows: dict[Any, str], new: str) -> None:
        machine = self.model.machine
        for pk, old in rows.items():
            if old != new and not machine.can_transition(old, new):
                raise InvalidTransition.on_save(pk, old, new)
        self._refuse_held(pk for pk, old in rows.items() if old != new and old == machine.active)

    def _refuse_held(self, pks: Iterable[Any]) -> None:
        for batch in batched(list(pks)):
            free = self.model.unheld()
            held = self._plain().filter(pk__in=batch).exclude(free).first() if free else None
            if held is not None:
                raise held._held()

    def _move_all(self, rows: dict[Any, str], new: str, values: dict[str, Any]) -> int:
        by_old = defaultdict(list)
        for pk, old in rows.items():
            by_old[old].append(pk)
        now = database_now(self.db)
        lines: list[MoveLine] = []
        for old, pks in by_old.items():
            change = values if old == new else self.model._as_update(old, new, now, values)
            for batch in batched(pks):
                self._plain().filter(pk__in=batch).update(**change)
            if old != new and move_lines.are_read():
                lines += self._lines(pks, old, new, change.get("reason", ""), values)
        for line in lines:
            move_lines.log_move(line)
        self.model.after_moves(self.db, {new} if by_old.keys() - {new} else ())
        return len(rows)

    def _lines(
        self, pks: list[Any], old: str, new: str, reason: Any, values: dict[str, Any]
    ) -> list[MoveLine]:
        info = {"actor": current_actor(), "reason": reason, **values.get("transition_info", {})}
        reasons, actor = self._reasons(pks, info["reason"]), str(info["actor"])
        return [self.model.line_of(pk, old, new, reasons.get(pk, ""), actor) for pk in pks]

    def _reasons(self, pks: list[Any], given: Any) -> dict[Any, str]:
        """Why each was moved; one that is found by the database is read back."""
        if isinstance(given, models.Value):
            given = given.value
        if not hasattr(given, "resolve_expression"):
            return dict.fromkeys(pks, str(given))
        found: dict[Any, str] = {}
        for batch in batched(pks):
            found.update(self._plain().filter(pk__in=batch).values_list("pk", "reason"))
        return found

    def bulk_update(
        self, objs: Iterable[Any], fields: Iterable[str], batch_size: int | None = None
    ) -> int:
        """Like Django's; with the state among `fields` all or nothing by the table of states.

        Raises InvalidTransition, StaleState, HeldByWorker; the objects are then as they were.
        """
        objs, fields = list(objs), list(fields)
        if self.model.state_field not in fields:
            count = self._plain().bulk_update(objs, fields, batch_size)
            for obj in objs:
                obj._remember(fields)
            return count
        with restored_on_error(objs), transaction.atomic(using=self.db):
            moved, alike = self._prepare_moves(objs, {*fields, "updated_at"})
            count = sum(
                self._plain().bulk_update(group, sorted(names), batch_size)
                for names, group in alike.items()
            )
            for obj, old in moved:
                obj._log_move(old)
            self.model.after_moves(self.db, {obj._state_now() for obj, _ in moved})
        for names, group in alike.items():
            for obj in group:
                obj._remember(names)
        return count

    def _prepare_moves(
        self, objs: Sequence[Any], fields: set[str]
    ) -> tuple[list[Any], dict[frozenset[str], list[Any]]]:
        """The moves, and the objects by the columns to write: a row gets only what is its own."""
        rows = self._locked([obj.pk for obj in objs])
        now, moved, alike = database_now(self.db), [], defaultdict(list)
        for obj in objs:
            if obj.pk not in rows:
                continue
            old, version = rows[obj.pk]
            obj._refuse_stale(version)
            obj.updated_at = now
            names = set(fields)
            if obj._state_now() != old:
                names |= obj._prepare_move(old, version, now)
                moved.append((obj, old))
            alike[frozenset(names)].append(obj)
        self._refuse_held(obj.pk for obj, old in moved if old == self.model.machine.active)
        return moved, alike

    def _locked(self, pks: list[Any]) -> dict[Any, tuple[str, int]]:
        found: dict[Any, tuple[str, int]] = {}
        for batch in batched(pks):
            rows = self._plain().filter(pk__in=batch).order_by("pk").select_for_update()
            for pk, old, version in rows.values_list("pk", self.model.state_field, "version"):
                found[pk] = (old, version)
        return found

    def bulk_create(self, objs: Iterable[Any], *args: Any, **kwargs: Any) -> list[Any]:
        """Like Django's; each object gets the timestamps that its state implies."""
        objs = list(objs)
        now = database_now(self.db)
        for obj in objs:
            obj._prepare_birth(now)
        created = super().bulk_create(objs, *args, **kwargs)
        self.model.after_moves(self.db, {obj._state_now() for obj in objs})
        for obj in objs:
            obj._remember()
        return created

    def update_state(self, id: Any, old: str, new: str) -> None:
        """Move one row from `old` to `new`. Raises DoesNotExist, StaleState, InvalidTransition."""
        model = self.model
        if not model.machine.can_transition(old, new):
            raise InvalidTransition.between(id, old, new, model.machine.get_next_states(old))
        if not self.filter(pk=id, **{model.state_field: old}).update(**{model.state_field: new}):
            found = getattr(self.get(pk=id), model.state_field)
            raise StaleState(f"{id} is {found}, not {old}", entity=id, old=old, new=new)

    def _plain(self) -> models.QuerySet[Any]:
        """Django's own QuerySet over all rows: for statements that were checked already."""
        return models.QuerySet(model=self.model, using=self.db)


def batched(items: Sequence[Any], size: int = BATCH) -> Iterator[Sequence[Any]]:
    """Slices of at most `size` items."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


class GuardedModel(models.Model):
    """A row with a state, a version that counts its moves, and a guard on every save."""

    machine: ClassVar[StateMachine]
    state_field: ClassVar[str]
    entity_type: ClassVar[str]
    attempt_field: ClassVar[str | None] = None
    counted: ClassVar[Counted | None] = None
    timed: ClassVar[tuple[str, str] | None] = None
    """The columns of its start and its end; `duration_ms` follows from them."""
    identity: ClassVar[Sequence[Sequence[str]]] = ()
    """Sets of fields that no two rows share, and that never change."""

    id = models.UUIDField(primary_key=True, default=ids.uuid7, editable=False)
    version = models.PositiveIntegerField(
        default=1, editable=False, help_text="Counts the moves: 1 at creation."
    )
    transition_info = models.JSONField(
        default=dict,
        blank=True,
        editable=False,
        help_text="Who made the latest move and why: version, actor, reason, metadata.",
    )
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    updated_at = models.DateTimeField(default=timezone.now, editable=False)

    duration_ms: Any
    _loaded: dict[str, Any] = {}
    _moved_to: str | None = None
    _expected: dict[str, Any] | None = None

    class Meta:
        abstract = True

    # What a model says of itself

    @classmethod
    def label(cls) -> str:
        """What a row is called in the log."""
        return str(cls._meta.verbose_name).capitalize()

    @classmethod
    def line_of(
        cls, pk: Any, old: str, new: str, reason: str, actor: str, attempt: int | None = None
    ) -> MoveLine:
        """What the log says of a move of one of these rows."""
        return MoveLine(cls.label(), cls.entity_type, pk, old, new, reason, actor, attempt)

    def _log_move(self, old: str) -> None:
        """Of the move that was just written."""
        info, attempt = self.transition_info, self.__dict__.get(self.attempt_field or "") or None
        told = (str(info.get("reason", "")), str(info.get("actor", "")), attempt)
        move_lines.log_move(self.line_of(self.pk, old, self._state_now(), *told))

    @classmethod
    def stamps(cls, old: str, new: str, now: datetime) -> dict[str, Any]:
        """The columns that such a move sets, unless the caller gave them; PLUS_ONE counts up."""
        return {}

    @classmethod
    def derived_columns(cls, change: dict[str, Any]) -> dict[str, Any]:
        """Expressions for columns that follow from those in `change`, for update()."""
        began, ended = cls.timed or ("", "")
        if not change.get(ended) or "duration_ms" in change:
            return {}
        start = change.get(began, models.F(began))
        return {"duration_ms": MillisecondsBetween(_moment(start), _moment(change[ended]))}

    def derive(self) -> set[str]:
        """Set the columns that follow from others, on the instance; returns their names."""
        if self.timed is None:
            return set()
        began, ended = (getattr(self, name) for name in self.timed)
        if began and ended and self.duration_ms is None:
            self.duration_ms = max(0, round((ended - began) / timedelta(milliseconds=1)))
        return {"duration_ms"} if ended else set()

    @classmethod
    def birth_stamps(cls, state: str, now: datetime) -> dict[str, Any]:
        """The columns that a row which begins in `state` must have."""
        return {}

    @classmethod
    def unheld(cls) -> models.Q:
        """Which rows may be moved by anybody, as far as nobody holds them."""
        return models.Q()

    @classmethod
    def after_moves(cls, using: str, new_states: Collection[str]) -> None:
        """Called inside the transaction after rows came into `new_states`."""

    # Moving

    def can_transition_to(self, new_status: str) -> bool:
        """Does the table have this move from where the instance stands?"""
        return self.machine.can_transition(self._state_now(), new_status)

    def transition_to(self, new_status: str, save: bool = True, **changes: Any) -> bool:
        """Move, with the timestamps of the new state and `changes` to other fields; saves.

        Raises InvalidTransition, StaleState, HeldByWorker; the instance is then as it was.
        """
        with restored_on_error([self]):
            old = self._begin_move(new_status)
            if not self.machine.can_transition(old, new_status):
                raise self._invalid(old, new_status)
            for name, value in changes.items():
                self._meta.get_field(name)
                setattr(self, name, value)
            setattr(self, self.state_field, new_status)
            self._stamp_move(old, new_status)
            if save:
                self.save()
        return True

    def _begin_move(self, target: str) -> str:
        old = self._state_now()
        unsaved = self._moved_to or self._loaded.get(self.state_field, old) != old
        if unsaved:
            message = f"Invalid transition to {target}: the move to {old} is not saved yet"
            raise InvalidTransition(message, entity=self, old=old, new=str(target))
        return old

    def _stamp_move(self, old: str, new: str) -> None:
        self._apply_stamps(old, new, database_now(self._using()))
        self._moved_to = str(new)

    def _apply_stamps(self, old: str, new: str, now: datetime) -> set[str]:
        stamps = self.stamps(old, new, now)
        given = self._given()
        for name, value in stamps.items():
            if name not in given:
                setattr(self, name, getattr(self, name) + 1 if value is PLUS_ONE else value)
        return {*stamps, *self.derive()}

    def _given(self) -> set[str]:
        """Fields whose values are the caller's, so that no stamp may replace them."""
        if self._state.adding:
            return {
                field.attname
                for field in self._meta.concrete_fields
                if getattr(self, field.attname) not in (None, field.get_default())
            }
        return self._changed()

    # Saving

    @classmethod
    def from_db(cls, *args: Any, **kwargs: Any) -> Any:
        instance = super().from_db(*args, **kwargs)
        instance._remember()
        return instance

    def refresh_from_db(self, *args: Any, **kwargs: Any) -> None:
        fields = kwargs.get("fields") or (args[1] if len(args) > 1 else None)
        super().refresh_from_db(*args, **kwargs)
        self._remember(fields)

    def save(
        self,
        *,
        force_insert: Any = False,
        force_update: bool = False,
        using: str | None = None,
        update_fields: Iterable[str] | None = None,
    ) -> None:
        """Write what this instance changed, if the row is still at the version that was read.

        Raises InvalidTransition, StaleState, HeldByWorker, DoesNotExist; nothing is written then.
        """
        using = using or self._using()
        if self.pk is None:
            self._state.adding = True
        with restored_on_error([self]):
            if self._state.adding:
                self._prepare_birth(database_now(using))
                super().save(force_insert=force_insert, using=using, update_fields=update_fields)
                self.after_moves(using, {self._state_now()})
                self._remember()
            else:
                self._save_changes(using, update_fields)

    def _save_changes(self, using: str, update_fields: Iterable[str] | None) -> None:
        names = self._changed() if update_fields is None else self._attnames(update_fields)
        if update_fields is not None and not names:
            return
        old, version = self._as_read(using)
        new = self._state_now() if self.state_field in names else old
        now = database_now(using) if new != old else timezone.now()
        if new != old:
            names |= self._prepare_move(old, version, now)
        self.updated_at = now
        with transaction.atomic(using=using), self._guarding(old, version):
            super().save(using=using, update_fields=names | {"updated_at"})
            if new != old:
                self.after_moves(using, {new})
        self._remember(names | {"updated_at"})
        if new != old:
            self._log_move(old)

    def _prepare_birth(self, now: datetime) -> None:
        """A row begins at version 1 with the timestamps that its state implies."""
        self.version = 1
        for name, value in self.birth_stamps(self._state_now(), now).items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        self.derive()
        info = self.transition_info if isinstance(self.transition_info, dict) else {}
        self.transition_info = {"actor": current_actor(), **info, "version": 1}

    def _prepare_move(self, old: str, version: int, now: datetime) -> set[str]:
        """Check the move and set what belongs to it; returns the fields to write."""
        new = self._state_now()
        if not self.machine.can_transition(old, new):
            raise InvalidTransition.on_save(self, old, new)
        if self._moved_to not in (None, new):
            message = f"Invalid status transition: {old} -> {self._moved_to} -> {new} in one save"
            raise InvalidTransition(message, entity=self, old=old, new=new)
        stamped = self._apply_stamps(old, new, now)
        self.version = version + 1
        self.transition_info = self._info_for(version + 1)
        return stamped | {self.state_field, "version", "transition_info"}

    def _info_for(self, version: int) -> dict[str, Any]:
        given = (
            self.transition_info
            if self.transition_info != self._loaded.get("transition_info")
            else {}
        )
        return {"actor": current_actor(), "reason": self._reason_now(), **given, "version": version}

    def _reason_now(self) -> str:
        return getattr(self, "reason", "") or ""

    @classmethod
    def _as_update(
        cls, old: str, new: str, now: datetime, values: dict[str, Any]
    ) -> dict[str, Any]:
        """The columns of an UPDATE that moves rows from `old` to `new`."""
        stamps = {
            name: models.F(name) + 1 if value is PLUS_ONE else value
            for name, value in cls.stamps(old, new, now).items()
        }
        change = {**stamps, **values, "version": models.F("version") + 1}
        told = {"actor": current_actor(), "reason": change.get("reason", "")}
        told |= values.get("transition_info", {})
        info = JSONObject(
            **{name: _json_value(value) for name, value in told.items()},
            version=models.F("version") + 1,
        )
        return {**change, "transition_info": info, **cls.derived_columns(change)}

    def _do_update(self, base_qs: Any, *args: Any) -> Any:
        if self._expected is None:
            return super()._do_update(base_qs, *args)
        mine = base_qs.filter(**self._expected)
        if self.version != self._expected["version"]:
            mine = mine.filter(self.unheld())
        updated = super()._do_update(mine, *args)
        if not updated:
            raise self._why_refused(base_qs)
        return updated

    def _why_refused(self, base_qs: Any) -> Exception:
        row = base_qs.filter(pk=self.pk).values(*(self._expected or ())).first()
        if row is None:
            return self.__class__.DoesNotExist(f"{self.label()} {self.pk} was deleted")
        return self._held() if row == self._expected else self._stale(row["version"])

    def _stale(self, version: int) -> StaleState:
        message = f"{self.label()} {self.pk} is at version {version}: it moved since it was read"
        old = str(self._loaded.get(self.state_field, ""))
        return StaleState(message, entity=self, old=old, new=self._state_now())

    def _held(self) -> HeldByWorker:
        message = f"{self.label()} {self.pk} is held by a worker: only that worker moves it"
        return HeldByWorker(message, entity=self, old=self.machine.active, new=self._state_now())

    def _invalid(self, old: str, new: str) -> InvalidTransition:
        return InvalidTransition.between(self, old, new, self.machine.get_next_states(old))

    def _refuse_stale(self, version: int) -> None:
        if self._loaded.get("version", version) != version:
            raise self._stale(version)

    @contextmanager
    def _guarding(self, old: str, version: int) -> Iterator[None]:
        self._expected = {self.state_field: old, "version": version}
        try:
            yield
        finally:
            self._expected = None

    # What the row said when it was read

    def _remember(self, names: Iterable[str] | None = None) -> None:
        wanted = self._attnames(names) if names is not None else None
        fresh = {
            field.attname: _kept(self.__dict__[field.attname])
            for field in self._meta.concrete_fields
            if field.attname in self.__dict__ and (wanted is None or field.attname in wanted)
        }
        self._loaded = fresh if wanted is None else {**self._loaded, **fresh}
        if wanted is None or self.state_field in wanted:
            self._moved_to = None

    def _changed(self) -> set[str]:
        missing = object()
        return {
            field.attname
            for field in self._meta.concrete_fields
            if field.attname in self.__dict__
            and self.__dict__[field.attname] != self._loaded.get(field.attname, missing)
        }

    def _as_read(self, using: str) -> tuple[str, int]:
        if self.state_field in self._loaded and "version" in self._loaded:
            return self._loaded[self.state_field], self._loaded["version"]
        row = self.__class__._base_manager.using(using).filter(pk=self.pk)
        found = row.values_list(self.state_field, "version").first()
        if found is None:
            raise self.__class__.DoesNotExist(f"{self.label()} {self.pk} was deleted")
        if self._loaded.get(self.state_field, found[0]) != found[0]:
            raise self._stale(found[1])
        return found  # type: ignore[no-any-return]

    def _attnames(self, names: Iterable[str]) -> set[str]:
        return {self._meta.get_field(name).attname for name in names}  # type: ignore[union-attr]

    def _state_now(self) -> str:
        return str(getattr(self, self.state_field))

    def _using(self) -> str:
        return self._state.db or router.db_for_write(self.__class__, instance=self)


def _moment(value: Any) -> Any:
    if hasattr(value, "resolve_expression"):
        return value
    return models.Value(value, output_field=models.DateTimeField())


class _AsJson(models.Func):
    """A JSON text that stays an object inside a JSONObject."""

    function = "JSON"
    output_field = models.JSONField()

    def as_postgresql(self, compiler: Any, connection: Any, **extra: Any) -> Any:
        return self.as_sql(compiler, connection, template="(%(expressions)s)::jsonb", **extra)


def _json_value(value: Any) -> Any:
    if isinstance(value, dict | list):
        return _AsJson(models.Value(json.dumps(value)))
    return value if hasattr(value, "resolve_expression") else models.Value(str(value))


def _kept(value: Any) -> Any:
    return copy.deepcopy(value) if isinstance(value, dict | list) else value


@contextmanager
def restored_on_error(objs: Iterable[GuardedModel]) -> Iterator[None]:
    """After an error the objects are as they were, so that memory is not ahead of the row."""
    before = [(obj, dict(obj.__dict__)) for obj in objs]
    try:
        yield
    except BaseException:
        for obj, values in before:
            obj.__dict__.clear()
            obj.__dict__.update(values)
        raise


def guarded_models() -> list[type[GuardedModel]]:
    """Every concrete model whose states the database guards."""
    return [
        model
        for model in apps.get_models()
        if issubclass(model, GuardedModel) and not model._meta.proxy
    ]


def guarded_tables() -> list[GuardedTable]:
    """What `db_guard` compiles its triggers from."""
    return [
        GuardedTable(
            table=model._meta.db_table,
            entity_type=model.entity_type,
            machine=model.machine,
            state_column=model.state_field,
            attempt_column=model.attempt_field,
            counted=model.counted,
            identity=tuple(
                tuple(model._meta.get_field(name).attname for name in names)  # type: ignore[union-attr]
                for names in model.identity
            ),
        )
        for model in guarded_models()
    ]
