mapsWidget();
pairsWidget();
