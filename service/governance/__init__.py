"""What the gateway itself keeps about versions: evidence, approvals, what is live, the trail. Decided like all else."""

from __future__ import annotations

from service.delivery.deliverer import Deliverer
from service.drift import Drift
from service.gateway import Gateway
from service.gather import Gatherer
from service.governance.access import AccessDesk, Explainer
from service.governance.adoption import AdoptionDesk
from service.governance.approvals import ApprovalDesk
from service.governance.debts import DebtDesk
from service.governance.desk import Desk
from service.governance.evaluations import EvaluationDesk
from service.governance.evidence import EvidenceDesk
from service.governance.holds import HoldDesk
from service.governance.quarantine import QuarantineDesk
from service.governance.requests import RequestDesk
from service.governance.reviews import ReviewDesk
from service.governance.standing import LiveDesk
from service.governance.trails import TrailDesk
from service.governance.versions import VersionDesk
from service.governance.webhooks import WebhookDesk
from service.promotion.environments import Environments
from service.watching import Watch


class Governance:
    """The operations of the governance API beside promotions; each group has its desk."""

    def __init__(
        self,
        gateway: Gateway,
        environments: Environments,
        gatherer: Gatherer,
        watch: Watch,
        drift: Drift,
        explainer: Explainer,
        deliverer: Deliverer,
    ) -> None:
        """Decide and record through *gateway*; *explainer* knows the policy's rows, *deliverer* sends events."""
        desk = Desk(gateway, environments, gatherer)
        self.versions = VersionDesk(desk)
        self.evidence = EvidenceDesk(desk)
        self.reviews = ReviewDesk(desk)
        self.approvals = ApprovalDesk(desk, self.reviews)
        self.live = LiveDesk(desk, watch, drift)
        self.quarantine = QuarantineDesk(desk)
        self.requests = RequestDesk(desk)
        self.debts = DebtDesk(desk)
        self.adoption = AdoptionDesk(desk)
        self.trail = TrailDesk(desk)
        self.holds = HoldDesk(desk)
        self.access = AccessDesk(desk, explainer)
        self.webhooks = WebhookDesk(desk, deliverer)
        self.evaluations = EvaluationDesk(desk, self.access)
