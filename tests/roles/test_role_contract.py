"""Every role of ours, and those that the tests bring, keep the contract of `po_distill.testing`."""

import pytest

from haiku import HaikuRole, JsonHaikuRole
from po_distill import plugins
from po_distill.testing import RoleContract


class TestProductOwner(RoleContract):
    role_name = "product_owner"


class TestHaiku(RoleContract):
    role_name = "haiku"

    @pytest.fixture(params=[HaikuRole, JsonHaikuRole])
    def kind(self, request):
        return request.param


def test_no_role_of_ours_is_left_out():
    ours = [one.name for one in plugins.list_plugins() if (one.group, one.package) == ("roles", "po-distill")]
    assert ours == [TestProductOwner.role_name]
