"""The methods, one file each, in folders by what they exchange."""
