"""Breaks the process that has this folder on its PYTHONPATH, at the points that CRASH_ARMS names.

Python imports a module of this name before anything else. Each arm (`tests.crash.arming`) is a function, before or
after which the process is killed or stopped, by itself and at once: what was written stays, nothing else is done. It
notes in a file that it came so far, so that a test can tell a death there from one elsewhere. A function that does not
exist ends the process with code 97: who renames it breaks the test, and not its meaning.
"""

from __future__ import annotations

import asyncio
import functools
import importlib.machinery
import inspect
import json
import os
import signal
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import Any

Function = Callable[..., Any]


class _Arm:
    def __init__(self, *, function: str, when: str, action: str, mark: str, call: int, within: str, about: str) -> None:
        self.function, self.when, self.action = function, when, action
        self.within, self.about = within, about
        self._mark, self._calls_left = mark, call
        self._lock = threading.Lock()
        # Tasks and threads inherit it, as they do what the logs know of a request.
        self._is_within: ContextVar[bool] = ContextVar("is_within", default=not within)

    def is_meant(self, args: object) -> bool:
        """Whether a call with these arguments counts."""
        return self._is_within.get() and (bool(self.within) or self._is_about(args))

    def reach(self) -> bool:
        """Do what the process was armed for, if this is the call; return whether it is."""
        with self._lock:
            self._calls_left -= 1
            if self._calls_left != 0:
                return False
        descriptor = os.open(self._mark, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        os.close(descriptor)
        if self.action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.action == "stop":
            # To this thread: it is the one that must not go on. It takes all others with it.
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
        return True

    def around_function(self, function: Function) -> Function:
        """Wrap the function at which it happens."""
        if inspect.iscoroutinefunction(function):

            async def reach_async(*args: Any, **kwargs: Any) -> Any:
                is_meant = self.is_meant((args, kwargs))
                if is_meant and self.action == "skip":
                    return None
                if is_meant and self.when == "before" and self.reach() and self.action == "hold":
                    await asyncio.Event().wait()
                result = await function(*args, **kwargs)
                if is_meant and self.when == "after":
                    self.reach()
                return result

            return functools.wraps(function)(reach_async)

        def reach(*args: Any, **kwargs: Any) -> Any:
            is_meant = self.is_meant((args, kwargs))
            if is_meant and self.when == "before":
                self.reach()
            result = function(*args, **kwargs)
            if is_meant and self.when == "after":
                self.reach()
            return result

        return functools.wraps(function)(reach)

    def around_within(self, function: Function) -> Function:
        """Wrap the function within which a call must be made in order to count."""
        if inspect.iscoroutinefunction(function):

            async def enter_async(*args: Any, **kwargs: Any) -> Any:
                token = self._is_within.set(self._is_within.get() or self._is_about((args, kwargs)))
                try:
                    return await function(*args, **kwargs)
                finally:
                    self._is_within.reset(token)

            return functools.wraps(function)(enter_async)

        def enter(*args: Any, **kwargs: Any) -> Any:
            token = self._is_within.set(self._is_within.get() or self._is_about((args, kwargs)))
            try:
                return function(*args, **kwargs)
            finally:
                self._is_within.reset(token)

        return functools.wraps(function)(enter)

    def _is_about(self, args: object) -> bool:
        return not self.about or self.about in repr(args)


class _Arming(MetaPathFinder):
    """Arms a module's functions right after it was imported, before anybody can take them from it."""

    def __init__(self, arms: Sequence[_Arm]) -> None:
        self._to_wrap: dict[str, list[tuple[str, Callable[[Function], Function]]]] = defaultdict(list)
        for arm in arms:
            self._add(arm.function, arm.around_function)
            if arm.within:
                self._add(arm.within, arm.around_within)
        for name in [name for name in self._to_wrap if name in sys.modules]:
            self._arm(sys.modules[name])

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in self._to_wrap:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_arm(module: ModuleType) -> None:
            execute(module)
            self._arm(module)

        spec.loader.exec_module = execute_and_arm  # type: ignore[method-assign] # this loader loads this module only
        return spec

    def _add(self, name: str, wrap: Callable[[Function], Function]) -> None:
        module, _, qualified = name.partition(":")
        self._to_wrap[module].append((qualified, wrap))

    def _arm(self, module: ModuleType) -> None:
        for qualified, wrap in self._to_wrap[module.__name__]:
            *classes, name = qualified.split(".")
            try:
                owner = functools.reduce(getattr, classes, module)
                setattr(owner, name, wrap(vars(owner)[name]))
            except (AttributeError, KeyError):
                print(f"nothing to arm: {module.__name__}:{qualified} does not exist", file=sys.stderr, flush=True)
                # An exception could be caught by whoever imports the module.
                os._exit(97)


def _inherit_context() -> None:
    """Have the work of thread pools run in its caller's context, as that of `asyncio.to_thread` does."""
    submit = ThreadPoolExecutor.submit

    def submit_in_context(self: ThreadPoolExecutor, work: Function, /, *args: Any, **kwargs: Any) -> Future[Any]:
        return submit(self, copy_context().run, work, *args, **kwargs)

    ThreadPoolExecutor.submit = submit_in_context  # type: ignore[assignment,method-assign] # `within` needs it


def _install() -> None:
    try:
        _inherit_context()
        arms = [_Arm(**arm) for arm in json.loads(os.environ["CRASH_ARMS"])]
        sys.meta_path.insert(0, _Arming(arms))
    except Exception as exc:  # Python itself only mentions it, and goes on
        print(f"CRASH_ARMS: {exc!r}", file=sys.stderr, flush=True)
        os._exit(97)


_install()
