"""The parent process of `upcall serve`: what the daemon stands by, and whether the cloud may be.

It sees no prompt and parses no model. Privacy mode lives here: while it is on, no cloud worker exists.
"""

import asyncio
import hashlib
import logging
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from daemon import keys, privacy, resolve
from daemon.accounts import prices
from daemon.config import ConfigError, Settings
from daemon.confine import Confinement, weakest
from daemon.logs import set_up_logging
from daemon.processes import systemd
from daemon.processes.children import Children, without_proxy
from daemon.processes.link import (
    Answered,
    Beat,
    CheckKey,
    CloudKey,
    Link,
    Listening,
    Measure,
    Memory,
    Message,
    Priced,
    PrivacySet,
    Reload,
    Reloaded,
    Retired,
    SetPrivacy,
    SetShare,
    ShareSet,
    Standing,
    Want,
    WorkerName,
)
from daemon.processes.tasks import Tasks, in_thread
from daemon.reload import takeover
from daemon.routing import share

log = logging.getLogger(__name__)

BEATS_PER_TIMEOUT = 3
"""How often the gateway is asked for a sign of life within the time that systemd waits for one."""
SWITCH_SECONDS = 1.0
"""How often the privacy switch is looked at, which others may set without this process."""
EXIT_CANNOT_LISTEN = 2
EXIT_UNENFORCED = 2


class Supervisor:
    def __init__(self, settings: Settings, reread: Callable[[], Settings]) -> None:
        """`reread` gives the settings as they are now, for a reload; it may raise `ConfigError`."""
        settings = share.applied(settings)
        self._settings = settings
        self._reread = reread
        self._link: Link | None = None
        self._children = Children(settings, self._forbidden, self._tell, self._note_confinement)
        self._tasks = Tasks()
        self._stopping = asyncio.Event()
        self._url = ""
        """Where requests are served, once they are."""
        self._listening = asyncio.Event()
        self._reloading = asyncio.Lock()
        self._sharing = asyncio.Lock()
        self._refusals = asyncio.Queue[str]()
        self._switch = privacy.stamp()
        """Of the privacy switch as it was last heard of."""
        self._unremembered = False
        """Privacy mode was switched on, and the switch does not say so."""
        self._standing = Standing(privacy=privacy.is_on(settings), pinned=settings.privacy.mode, has_key=False, key="")
        self._status = 0
        """What the command line exits with once stopped."""

    async def run(self) -> int:
        """Serve until SIGTERM, SIGINT or the gateway's end; the exit status for the command line."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        # In a terminal SIGHUP says that the terminal is gone.
        hang_up = self._stopping.set if sys.stderr.isatty() else lambda: self._tasks.start(self._reload())
        loop.add_signal_handler(signal.SIGHUP, hang_up)
        try:
            self._stand(token_sha256=await self._token_sha256())
            await self._start_gateway()
        except (systemd.ActivationError, keys.KeyUnavailable) as error:
            log.error("%s", error)
            return EXIT_CANNOT_LISTEN
        self._tasks.start(self._look_for_key())
        self._children.want("local")
        self._children.trace()
        self._tasks.start(self._look_up_prices())
        self._tasks.start(self._ask_for_beats())
        self._tasks.start(self._watch_switch())
        stopping = asyncio.create_task(self._stopping.wait())
        assert self._children.gateway is not None
        gateway_end = asyncio.create_task(self._children.gateway.wait())
        await asyncio.wait([stopping, gateway_end], return_when=asyncio.FIRST_COMPLETED)
        unexpected = not self._stopping.is_set()
        self._stopping.set()
        systemd.notify("STOPPING=1")
        await self._children.stop()
        stopping.cancel()
        if not unexpected:
            return self._status
        if self._listening.is_set():
            log.error("the gateway ended unexpectedly with status %s", gateway_end.result())
        return gateway_end.result() or 1

    async def _token_sha256(self) -> str | None:
        if not self._settings.server.token:
            return None
        token = await in_thread(keys.find, keys.SERVER_TOKEN)
        return hashlib.sha256(token.encode()).hexdigest()

    async def _start_gateway(self) -> None:
        self._link = Link(await self._children.start_gateway(systemd.listener()), self._on_message)
        self._link.send(self._standing)

    def _forbidden(self, name: WorkerName | Literal["traces"]) -> str:
        """Why a child may not exist now; empty where it may."""
        local = self._settings.local
        if not self._standing.privacy or (name == "local" and not local.is_elsewhere):
            return ""
        if name == "traces":
            here = self._settings.telemetry.is_loopback
            return "" if here else "privacy mode is on, and the collector is another machine"
        if name == "cloud":
            return "privacy mode is on"
        return (
            f"privacy mode is on, and {local.endpoint} is another machine; set local.on_premises = true if it is yours"
        )

    def _note_confinement(self, name: str, confinement: Confinement) -> None:
        self._stand(confined={**self._standing.confined, name: confinement})
        for layer, why in confinement.missing.items():
            log.warning("the %s process runs without %s: %s", name, layer, why)
        if refusal := self._unenforced(self._settings):
            log.error("%s", refusal)
            self._status = EXIT_UNENFORCED
            self._stopping.set()

    def _unenforced(self, settings: Settings) -> str:
        """Why privacy mode cannot be kept as `settings` ask for it, on one line; empty where it can, or is off."""
        if not privacy.is_on(settings) or settings.privacy.enforcement == "best-effort":
            return ""
        if weakest(self._standing.confined.values()) != "none":
            return ""
        return (
            "privacy mode is on, and this kernel enforces nothing: allow unprivileged user namespaces or seccomp, or "
            'accept less with privacy.enforcement = "best-effort"'
        )

    def _on_message(self, message: Message | None, _: socket.socket | None) -> None:
        match message:
            case Listening(url=url, confinement=confinement):
                self._note_confinement("gateway", confinement)
                if self._status:
                    return
                self._url = url
                self._listening.set()
                log.info("listening on %s", url)
                systemd.notify("READY=1", f"STATUS=Listening on {url}")
            case None:
                # What other tasks have left to say, nobody hears.
                self._link = None
            case Beat():
                systemd.notify("WATCHDOG=1")
            case Reloaded(refusal=refusal):
                self._refusals.put_nowait(refusal)
            case Want(worker=name):
                self._children.want(name)
            case Answered(worker=name):
                self._children.forgive(name)
            case SetPrivacy(on=on):
                self._tell(PrivacySet(self._set_privacy(on)))
            case SetShare(cloud_share=cloud_share):
                self._tasks.start(self._set_share(cloud_share))
            case CheckKey():
                self._tasks.start(self._look_for_key())
            case Measure():
                self._tell(Memory(self._children.resident()))
            case _:
                pass

    def _set_privacy(self, on: bool) -> str:
        """What is wrong with that, as a sentence for people: it does not hold, or only until the next start."""
        if not on and self._standing.pinned:
            return "Privacy mode is set in config.toml (privacy.mode); take it out there and restart upcall."
        # What was said past this daemon before is said no more.
        self._switch = privacy.stamp()
        if on:
            # Before anything that a full disk could keep from being done.
            self._unremembered = True
            self._take_privacy(True)
        if trouble := self._remember_privacy(on):
            log.error("%s", trouble)
            return trouble
        self._switch, self._unremembered = privacy.stamp(), False
        self._take_privacy(on)
        self._warn_unenforced()
        return ""

    def _remember_privacy(self, on: bool) -> str:
        """Set the switch; where that cannot be done and it says otherwise, a sentence on what that means."""
        try:
            privacy.remember(on)
        except OSError as error:
            if privacy.is_on(self._settings) != on:
                state = "on, but only until the next start" if on else "still on"
                return f"Privacy mode is {state}, because {privacy.path()} cannot be written ({error.strerror})."
        return ""

    def _take_privacy(self, on: bool) -> None:
        self._stand(privacy=on)
        self._children.settings = self._for_children(self._settings)
        self._hold_children()
        self._children.trace()

    def _for_children(self, settings: Settings) -> Settings:
        """Pinned to privacy mode while the switch, which the local worker reads, does not say that it is on."""
        if not self._unremembered:
            return settings
        return settings.model_copy(update={"privacy": settings.privacy.model_copy(update={"mode": True})})

    def _warn_unenforced(self) -> None:
        if refusal := self._unenforced(self._settings):
            log.error("%s; until the next start, which will be refused, only upcall itself keeps it", refusal)

    async def _watch_switch(self) -> None:
        """Hear of a switch that was set past this daemon, by who looked for one at another address. Never returns."""
        while True:
            await asyncio.sleep(SWITCH_SECONDS)
            # One that cannot be seen just now says nothing.
            if (stamp := privacy.stamp()) and stamp != self._switch:
                self._switch, self._unremembered = stamp, False
                before, on = self._standing.privacy, privacy.is_on(self._settings)
                self._take_privacy(on)
                if on != before:
                    log.info("the privacy switch was found %s", "on" if on else "off")
                    self._warn_unenforced()

    def _hold_children(self) -> None:
        """To what privacy mode asks for as it is now."""
        self._children.kill_forbidden()
        if self._standing.privacy:
            self._children.keep_nothing()

    async def _set_share(self, cloud_share: float) -> None:
        # One after the other, since the answers name no question.
        async with self._sharing:
            trouble = "upcall failed; its log names the place"
            try:
                earlier = share.kept()
                share.remember(cloud_share, self._reread())
                try:
                    trouble = await self._reload()
                finally:
                    if trouble:
                        share.restore(earlier)
            except (ConfigError, OSError) as error:
                trouble = "; ".join(str(error).splitlines())
                log.error("the share of prompts that may go up was not set: %s", trouble)
            finally:
                self._tell(ShareSet(trouble))

    async def _ask_for_beats(self) -> None:
        """Feed systemd's watchdog with what the gateway's event loop sends back, and with nothing else."""
        if seconds := systemd.watchdog_seconds():
            while True:
                self._tell(Beat())
                await asyncio.sleep(seconds / BEATS_PER_TIMEOUT)

    async def _reload(self) -> str:
        """Serve by the settings as they are now; otherwise the reason why not, on one line."""
        async with self._reloading:
            await self._listening.wait()
            systemd.reloading()
            refusal = await self._take_over_settings()
            if refusal:
                log.error("the settings were not reloaded, the earlier ones hold: %s", refusal)
            status = f"Listening on {self._url}" + (f"; settings not reloaded: {refusal}" if refusal else "")
            systemd.notify("READY=1", f"STATUS={status}")
            return refusal

    async def _take_over_settings(self) -> str:
        try:
            settings, left = takeover(self._settings, share.applied(self._reread()))
        except ConfigError as error:
            return "; ".join(str(error).splitlines())
        if refusal := self._unenforced(settings):
            return refusal
        cloud_changed = settings.cloud != self._settings.cloud
        prices_changed = _priced(settings) != _priced(self._settings)
        self._tell(Reload(without_proxy(settings), cloud_changed, prices_changed))
        if refusal := await self._refusals.get():
            return refusal
        before, self._settings = self._settings, settings
        self._children.settings = self._for_children(settings)
        set_up_logging(settings.log)
        if cloud_changed:
            self._children.retire_cloud()
            self._tell(Retired("cloud"))
        if prices_changed:
            self._tasks.start(self._look_up_prices())
        self._stand(privacy=privacy.is_on(settings) or self._unremembered, pinned=settings.privacy.mode)
        self._hold_children()
        self._children.trace(anew=(settings.telemetry, settings.cloud) != (before.telemetry, before.cloud))
        self._tasks.start(self._look_for_key())
        log.info("the settings were reloaded")
        if left:
            log.warning("%s changed, which a restart applies: systemctl --user restart upcall", ", ".join(left))
        return ""

    async def _look_for_key(self) -> None:
        found: list[CloudKey] = []
        settings = self._settings
        for cloud in resolve.clouds(settings.cloud):
            name = cloud.key_name
            try:
                where = await in_thread(keys.where, name) if name else "the endpoint asks for no key"
                found.append(CloudKey(cloud.name, True, where))
            except (keys.KeyUnavailable, ValueError) as error:
                found.append(CloudKey(cloud.name, False, str(error)))
        best = next((key for key in found if key.there), found[0])
        # A look that a reload overtook says nothing about the models of now; that reload has its own.
        if settings.cloud == self._settings.cloud:
            looks = self._standing.looks + 1
            self._stand(has_key=best.there, key=best.detail, keys=tuple(found), looks=looks)

    async def _look_up_prices(self) -> None:
        settings = self._settings
        found = [await prices.find(endpoint, settings.prices) for endpoint in settings.cloud.endpoints]
        # Not during a reload, in which the gateway may have other settings than this process already.
        async with self._reloading:
            if _priced(settings) == _priced(self._settings):
                self._tell(Priced(tuple(found)))

    def _stand(self, **changes: Any) -> None:
        self._standing = replace(self._standing, **changes)
        self._tell(self._standing)

    def _tell(self, message: Message, sock: socket.socket | None = None) -> None:
        if self._link:
            self._link.send(message, sock)


def _priced(settings: Settings) -> object:
    """All that prices follow from."""
    return settings.cloud, settings.prices
