//! A VmSpec becomes a running Vm.
