mapsWidget();
trimmedWidget();
pairsWidget();
