"""The methods: one file each, by what is exchanged."""
