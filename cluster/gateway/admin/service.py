"""moemesh.v1.Admin: what operators see and order, forwarded to the controller, which decides."""

from __future__ import annotations

from cluster.balance.placement import PlacementTable
from cluster.errors import Forbidden, InvalidRequest, Unavailable
from cluster.gateway.admin import messages
from cluster.gateway.admin.link import ControllerLink
from cluster.gateway.cluster_view import ClusterView
from cluster.gateway.status import Context, answering
from protos import admin_pb2 as pb
from protos import admin_pb2_grpc

UNREACHABLE = "unreachable: an error ends the RPC"


class AdminService(admin_pb2_grpc.AdminServicer):
    """guarded: others are kept out, by keys or by a port that only this machine reaches."""

    def __init__(self, controller: ControllerLink, view: ClusterView, guarded: bool) -> None:
        self._controller = controller
        self._view = view
        self._guarded = guarded

    async def GetPlacement(self, request: pb.GetPlacementRequest, context: Context) -> pb.Placement:
        async with answering(context):
            self._check_guarded()
            table = (await self._controller.status())["table"]
            if table is None:
                raise Unavailable("there is no placement yet; try again when the cluster is ready")
            return messages.placement_of(PlacementTable.from_wire(table))
        raise AssertionError(UNREACHABLE)

    async def GetStats(self, request: pb.GetStatsRequest, context: Context) -> pb.ClusterStats:
        async with answering(context):
            self._check_guarded()
            return messages.stats_of(await self._controller.status())
        raise AssertionError(UNREACHABLE)

    async def Watch(self, request: pb.WatchRequest, context: Context) -> None:  # type: ignore[override]
        """Holds one state a watcher: what changes while it does not read is seen when it does."""
        async with answering(context):
            self._check_guarded()
            last: pb.ClusterState | None = None
            while not self._view.closed:
                # Taken before the write: a change during the write is then seen, not slept through.
                changed = self._view.changed
                if told := self._view.now.told:
                    state = messages.state_of(told)
                    if state != last:
                        await context.write(state)
                        last = state
                await changed.wait()
            raise Unavailable("the gateway stops; watch by another one")

    async def Drain(self, request: pb.DrainRequest, context: Context) -> pb.MovePlan:
        async with answering(context):
            self._check_guarded()
            return messages.plan_of(await self._controller.drain(_named(request.node)))
        raise AssertionError(UNREACHABLE)

    async def Undrain(self, request: pb.UndrainRequest, context: Context) -> pb.UndrainResponse:
        async with answering(context):
            self._check_guarded()
            await self._controller.undrain(_named(request.node))
            return pb.UndrainResponse()
        raise AssertionError(UNREACHABLE)

    async def Rebalance(self, request: pb.RebalanceRequest, context: Context) -> pb.MovePlan:
        async with answering(context):
            self._check_guarded()
            return messages.plan_of(await self._controller.rebalance(request.dry_run, request.force))
        raise AssertionError(UNREACHABLE)

    async def GetTierPolicy(self, request: pb.GetTierPolicyRequest, context: Context) -> pb.TierPolicy:
        async with answering(context):
            self._check_guarded()
            return pb.TierPolicy(offered=await self._controller.tiers())
        raise AssertionError(UNREACHABLE)

    async def SetTierPolicy(self, request: pb.SetTierPolicyRequest, context: Context) -> pb.TierPolicy:
        async with answering(context):
            self._check_guarded()
            offered = await self._controller.set_tiers(list(request.policy.offered))
            return pb.TierPolicy(offered=offered)
        raise AssertionError(UNREACHABLE)

    def _check_guarded(self) -> None:
        if not self._guarded:
            raise Forbidden(
                "this gateway asks for no keys and other machines reach it, so it takes no orders; start it "
                "with --keys, or use `moemesh` on the machine itself"
            )


def _named(node: str) -> str:
    if not node:
        raise InvalidRequest("node is empty; name an expert node")
    return node
