"""Where parcels are, in memory."""


class Store:
    def __init__(self, places):
        self._places = dict(places)

    def place(self, parcel):
        return self._places.get(parcel)
