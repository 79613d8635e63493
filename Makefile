.DEFAULT_GOAL := help
CACHE := $(CURDIR)/.cache
TREE := $(CACHE)/collections/ansible_collections/imageferry/glance
VENV := $(CACHE)/venv
CLOUD_VENV := $(CACHE)/cloud-venv
export IMAGEFERRY_NEWEST_VENV := $(CACHE)/newest-venv
export IMAGEFERRY_HOST39_VENV := $(CACHE)/host39-venv
export ANSIBLE_COLLECTIONS_PATH := $(CACHE)/collections
export ANSIBLE_HOME := $(CACHE)/ansible

MAKE_VENV := python3 tests/checks/make_venv.py
PYTEST := -m pytest --import-mode=importlib -p no:cacheprovider
IN_TREE := cd $(TREE) && PYTHONPATH=$(CACHE)/collections

help:  ## Show what each target does
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: demo-packages  ## Set up everything and show on this machine what the collection does
	@$(MAKE) --no-print-directory --jobs=2 demo-venv cloud-venv tree
	@bash -c 'source demo/activate && ansible-playbook demo/demo.yml'

test: packages  ## Set up everything and run all checks and tests
	@$(MAKE) --no-print-directory --jobs=2 setup
	@$(MAKE) --no-print-directory lint
	@$(IN_TREE) $(VENV)/bin/python $(PYTEST) --numprocesses=3 --dist=loadfile --no-loadscope-reorder --reruns=1 tests/checks tests/unit tests/integration

lint: venv tree  ## Check style, types, Ansible's rules, documentation and changelog
	@$(IN_TREE) tests/checks/lint $(VENV)

sanity: venv newest-venv tree  ## Run ansible-test's sanity tests with the oldest and the newest ansible-core
	@$(IN_TREE) $(VENV)/bin/python $(PYTEST) tests/checks/test_sanity.py

hosts: host39-venv tree  ## Run the unit tests of what runs on hosts with the oldest Python of a host, 3.9
	@$(IN_TREE) tests/checks/host39 $(IMAGEFERRY_HOST39_VENV)

molecule: packages venv tree  ## Run all Molecule scenarios, on a whole host that is started for them
	@$(IN_TREE) tests/checks/molecule $(VENV)

cloud: demo-packages cloud-venv  ## Start a real Glance and Keystone on this machine, and say how to use them
	@$(CLOUD_VENV)/bin/python tests/cloud/embedded_cloud.py start

docs: venv tree  ## Build the documentation's site, after the parts that are made from the code
	@$(IN_TREE) $(VENV)/bin/python docs/list_errors.py
	@$(IN_TREE) docs/build $(VENV) $(CACHE)/docs
	@echo "The site is there: $(CACHE)/docs/html/index.html"

picture: packages venv tree  ## Take the picture of the report that is in the documentation
	@$(IN_TREE) $(VENV)/bin/python docs/take_screenshot.py

bench: packages venv cloud-venv tree  ## Measure the import against what people use instead
	@$(IN_TREE) $(VENV)/bin/python benchmarks/bench.py --venv $(CLOUD_VENV)

clean:  ## Stop the demo's cloud, and remove what make has set up in this clone
	@! test -d $(CACHE)/demo/cloud || python3 tests/cloud/embedded_cloud.py stop --state $(CACHE)/demo/cloud
	rm -rf $(CACHE)

packages:
	@tests/install_packages

demo-packages:
	@tests/install_packages demo

setup: venv cloud-venv newest-venv host39-venv tree

venv:
	@$(MAKE_VENV) $(VENV) requirements.txt tests/requirements.txt --python 3.11

cloud-venv:
	@$(MAKE_VENV) $(CLOUD_VENV) tests/cloud/requirements.txt --python 3.11

demo-venv:
	@$(MAKE_VENV) $(CACHE)/demo-venv requirements.txt demo/requirements.txt --python 3.11

newest-venv:
	@$(MAKE_VENV) $(IMAGEFERRY_NEWEST_VENV) requirements.txt tests/requirements-newest.txt --python 3.12-3.14 --optional

host39-venv:
	@$(MAKE_VENV) $(IMAGEFERRY_HOST39_VENV) tests/requirements-host39.txt --python 3.9 --optional

tree:
	@mkdir -p $(dir $(TREE))
	@ln -sfn $(CURDIR) $(TREE)

.PHONY: help demo test lint sanity hosts molecule cloud docs picture bench clean packages demo-packages setup
.PHONY: venv cloud-venv demo-venv newest-venv host39-venv tree
