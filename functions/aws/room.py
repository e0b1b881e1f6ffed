"""Room on a full endpoint: standbys that no client can hold any longer go first, the oldest of all."""

import time

from aws import components
from aws.faults import ComponentBusy, EndpointFull, RoomBeingMade, Throttled
from aws.registry import Registry
from aws.runtime import logger
from loradrop.lifecycle import CLIENT_SECONDS, early_standbys


def make_room(registry: Registry, endpoint: str, full: EndpointFull) -> None:
    """Raises RoomBeingMade if something is being deleted, by this call or by another; else `full`."""
    try:
        leaving = next(components.on_endpoint(endpoint, status="Deleting"), None)
    except Throttled as error:  # that the endpoint is full is known all the same
        raise RoomBeingMade(f"{full} Which components are leaving it could not be read: {error}") from full
    if leaving is not None:
        raise RoomBeingMade(f"{full} {leaving['InferenceComponentName']} is being deleted.") from full
    now = int(time.time())
    for adapter, name in early_standbys(registry.watched_states(), endpoint, now):
        if not registry.begin_delete(adapter, name, now=now, needed_room_since=now - CLIENT_SECONDS):
            continue  # it was taken over meanwhile
        try:
            is_gone = components.delete(name)
        except (ComponentBusy, Throttled):
            continue
        if is_gone:
            registry.end_delete(adapter, name)
        logger.info("room made", adapter=adapter, component=name, is_gone=is_gone)
        raise RoomBeingMade(f"{full} {name}, a standby of {adapter}, is being deleted.") from full
    raise full
