# A pipeline's Makefile takes this in with `include promote.mk`:
#
#   make promote PO_MODEL=po-student-v1    let the Product Owner use the student, after a look at the difference
#   make rollback                          as it was before
#   make promotions                        who is promoted since when
#   make po PO_MODEL=po-student-v1         one run with this model, whatever the config says
#   make po                                one run with the model of the config
#
# The role's code asks po_distill.role_model.resolve_role_model(config, role) for its model.

PO_CONFIG ?= config.yaml
PO_ROLE ?= product_owner
PO_MODEL ?=
PO_COMMAND ?= python run_product_owner.py
PO_DISTILL ?= po-distill

export PO_MODEL

.PHONY: po promote rollback promotions

po:
	$(PO_COMMAND)

promote:
	@test -n "$$PO_MODEL" || { echo "Name the model: make promote PO_MODEL=po-student-v1" >&2; exit 2; }
	$(PO_DISTILL) promote --config $(PO_CONFIG) --role $(PO_ROLE) --model "$$PO_MODEL" $(if $(YES),--yes)

rollback:
	$(PO_DISTILL) rollback --config $(PO_CONFIG) $(if $(YES),--yes)

promotions:
	$(PO_DISTILL) promotions --config $(PO_CONFIG)
