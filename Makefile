.PHONY: setup demo test check fix bench prove
setup: ; @scripts/setup.sh
demo: setup ; @scripts/demo.sh
test: ; @scripts/test.sh
check: setup ; @scripts/check.sh
fix: setup ; @scripts/fix.sh
bench: setup ; @scripts/bench.sh
prove: setup ; @scripts/prove.sh
