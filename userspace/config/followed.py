"""What is to be followed of the host's network, and what the namespace gets for it.

Part of this runs in the process that follows (:mod:`passt.kernel.follow`), which knows options by
the copy of our memory that it has, and must not log.
"""

from __future__ import annotations

from passt.kernel.follow.start import LOCAL, NOTHING, WORLD, Task
from passt.kernel.netlink.worker import FamilyTemplate
from passt.userspace.config import dns
from passt.userspace.config.model import Family
from passt.userspace.config.resolve import is_link_local, plan_of, resolve_family

TYPE_CHECKING = False
if TYPE_CHECKING:
    from passt.kernel.follow.start import Summary
    from passt.kernel.netlink.worker import FamilyPlan, TemplateInfo
    from passt.userspace.config.model import Config
    from passt.userspace.config.options import Options

AF_INET, AF_INET6 = 2, 10


def task_of(options: Options, config: Config, template: TemplateInfo, netns: int) -> Task:
    """What the follower is to do for the network namespace behind descriptor ``netns``.

    ``template`` is what was found on the host at start.
    """
    wishes = []
    grades = {}
    for number, family, outbound in (
        (AF_INET, config.v4, options.outbound_if4),
        (AF_INET6, config.v6, options.outbound_if6),
    ):
        if not family.enabled:
            continue
        version = family.version
        has_address = getattr(options, f"address_v{version}") is not None
        has_link_local = version == 6 and is_link_local(options.gateway_v6)
        names = (options.interface or None, outbound or None)
        wishes.append((number, *names, has_address, has_link_local))
        if family.local:
            grades[number] = NOTHING
        else:
            grades[number] = LOCAL if family.gateway is None else WORLD

    def plans(templates: dict[int, Summary | None]) -> dict[int, FamilyPlan | None]:
        return plans_for(options, templates)

    found = [each for each in (template.ipv4, template.ipv6) if each is not None]
    addresses = [addr for each in found for addr in (each.address, *each.others) if addr]
    return Task(
        wishes,
        grades,
        addresses,
        plans if config.config_net else None,
        netns,
        resolvers=dns.needs_file(options),
        chroot_fallback=options.chroot_fallback,
    )


def plans_for(
    options: Options, templates: dict[int, Summary | None]
) -> dict[int, FamilyPlan | None]:
    """What the namespace gets for these templates; called by the follower, in its process."""
    return {
        family: plan_of(settled(options, family, template))
        for family, template in templates.items()
    }


def settled(options: Options, family: int, template: Summary | None) -> Family:
    """What one IP version would be if we were started now."""
    now = Family(4 if family == AF_INET else 6)
    resolve_family(now, options, None if template is None else FamilyTemplate(*template))
    return now
